"""The model card of a pipeline folder: what it was trained on, how it was measured, how to use it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import ModelCard, ModelCardData

from wvq.data.layout import layout_name
from wvq.errors import CheckpointError
from wvq.files.atomic import read_json
from wvq.generator.base.conditioning import class_list
from wvq.generator.kinds import drawing_text
from wvq.plain_output import one_line
from wvq.settings.size import size_text

if TYPE_CHECKING:
    from wvq.generator.base.sampling_settings import SamplingSettings
    from wvq.pipelines.parts import PipelineParts
    from wvq.tokenizer.configuration import WassersteinVQConfig

CARD_NAME = "README.md"
_LIBRARY = "wvq"  # as the card's metadata name it
_SAMPLING = "- sampling defaults: "
_TEMPLATE = """---
{{ card_data }}
---
# {{ title }}

{{ summary }}

## Use

```python
from wvq import ImageGenerationPipeline

pipe = ImageGenerationPipeline.from_pretrained("{{ name }}")
images = pipe({{ call }}, seed=0).images
```

{{ source }}

## Model

{{ model }}

## Measured

{{ measured }}
"""
_TOKENIZER_TEMPLATE = """---
{{ card_data }}
---
# {{ title }}

Image tokenizer: pictures to codes and back.

## Use

```python
from wvq import WassersteinVQModel

tokenizer = WassersteinVQModel.from_pretrained("{{ name }}")
```

## Origin

{{ origin }}

## Model

{{ model }}
"""


def model_card(
    pipeline: PipelineParts,
    name: str = "path/to/this/folder",
    title: str = "wvq image generation pipeline",
    data: str = "The card was written without a note on the data.",
    licence: str | None = None,
    results: dict[str, dict] | None = None,
    origin: str | None = None,
) -> str:
    """Text of the card, with YAML metadata.

    Args:
        pipeline: the pipeline.
        name: folder or Hub id for the example.
        title: heading.
        data: what the model was trained on, with its licence.
        licence: licence id of the weights for the metadata.
        results: figures by stage, printed as a table.
        origin: where the weights come from, if they were not trained here; in the place of the data.
    """
    tokenizer, generator = pipeline.tokenizer.config, pipeline.generator.config
    conditions = [word for word, on in (("class", generator.num_classes), ("text", generator.text_dim)) if on]
    call = "num_images=4"
    if generator.num_classes:
        call = f"class_labels={generator.class_names[:1] or [0]}"
    elif generator.text_dim:
        call = 'prompt="..."'
    parameters = sum(p.numel() for p in pipeline.generator.parameters()) / 1e6
    model = [
        _tokenizer_line(tokenizer),
        f"- generator: `{generator.model_type}` of {layout_name(generator.code_layout)}: {drawing_text(generator)}; "
        f"{generator.num_layers} layers, width {generator.hidden_size}, {parameters:.1f} M parameters",
        _sampling_line(pipeline.sampling),
    ]
    if generator.class_names:
        model.append(f"- classes: {', '.join(map(one_line, class_list(generator.class_names)))}")
    codes = "Wasserstein-VQ" if tokenizer.quantizer in ("wasserstein", "sliced") else "VQ"
    card = ModelCard.from_template(
        ModelCardData(license=licence, library_name=_LIBRARY, pipeline_tag="unconditional-image-generation"
                      if not generator.text_dim else "text-to-image"),
        template_str=_TEMPLATE,
        title=title,
        summary=f"Autoregressive image generation over {codes} codes; {' and '.join(conditions) or 'un'}"
        + ("-conditional." if conditions else "conditional."),
        name=name,
        call=call,
        source=f"## Data\n\n{data}" if origin is None else f"## Origin\n\n{origin}",
        model="\n".join(model),
        measured=_table(results) if results else "No figures were given.",
    )  # fmt: skip
    return str(card)


def tokenizer_card(tokenizer: WassersteinVQConfig, name: str, title: str, origin: str, licence: str | None) -> str:
    """Text of the card of an imported tokenizer, with YAML metadata.

    Args:
        tokenizer: its config.
        name: folder or Hub id for the example.
        title: heading.
        origin: where the weights come from.
        licence: licence id of the weights for the metadata.
    """
    card = ModelCard.from_template(
        ModelCardData(license=licence, library_name=_LIBRARY, pipeline_tag="image-to-image"),
        template_str=_TOKENIZER_TEMPLATE,
        title=title,
        name=name,
        origin=origin,
        model=_tokenizer_line(tokenizer),
    )
    return str(card)


def is_model_card(text: str) -> bool:
    """Whether a README's metadata name this library."""
    parts = text.split("---", 2)
    return len(parts) == 3 and not parts[0].strip() and f"library_name: {_LIBRARY}" in parts[1].splitlines()


def rename(card: str, name: str) -> str:
    """The card with another folder or Hub id in its example."""
    return re.sub(r'(ImageGenerationPipeline\.from_pretrained\()"[^"\n]*"', lambda m: f'{m[1]}"{name}"', card)


def with_sampling(card: str, sampling: SamplingSettings) -> str:
    """The card with these sampling defaults in the line that names them, if it has one."""
    line = _sampling_line(sampling)
    return "\n".join(line if before.startswith(_SAMPLING) else before for before in card.split("\n"))


def _tokenizer_line(tokenizer: WassersteinVQConfig) -> str:
    return (
        f"- tokenizer: {size_text(tokenizer.image_size)} px, grid {tokenizer.grid[0]} x {tokenizer.grid[1]}, "
        f"K = {tokenizer.num_codes:,}, D = {tokenizer.code_dim}, quantizer `{tokenizer.quantizer}`"
    )


def _sampling_line(sampling: SamplingSettings) -> str:
    return f"{_SAMPLING}`{json.dumps(vars(sampling))}`"


def _table(results: dict[str, dict]) -> str:
    rows = ["| stage | figure | value |", "|---|---|---|"]
    for stage, figures in results.items():
        for figure, value in figures.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                name = one_line(figure).replace("|", "\\|")
                rows.append(f"| {stage} | {name} | {value:,.4g} |")
    return "\n".join(rows)


def read_results(folder: str | Path) -> dict[str, dict]:
    """The ``result.json`` of each stage of a pipeline folder that has one."""
    results = {}
    for stage in ("tokenizer", "generator"):
        file = Path(folder) / stage / "result.json"
        if file.exists():
            results[stage] = read_json(file, CheckpointError, f"{file} is missing")
    return results
