"""What several tests of the tokenizer share."""

import pytest

from wvq.tokenizer.recipes import ExportRecipe


@pytest.fixture
def export_recipe(tmp_path, tiny_tokenizer_dir, caption_folder, tiny_data):
    """A function that makes the recipe of an export of the captioned pictures, into a folder that does not exist."""

    def make(num_crops=1, batch_size=64, **data) -> ExportRecipe:
        return ExportRecipe(
            out=str(tmp_path / f"codes-{num_crops}-{batch_size}"),
            tokenizer=str(tiny_tokenizer_dir),
            data=tiny_data(caption_folder, **data),
            num_crops=num_crops,
            batch_size=batch_size,
        )

    return make
