"""The feature networks by name. Imports nothing heavy."""

INCEPTION = "inception"
EFFICIENTNET_LITE0 = "efficientnet_lite0"
FEATURE_NETWORKS = (INCEPTION, EFFICIENTNET_LITE0)
