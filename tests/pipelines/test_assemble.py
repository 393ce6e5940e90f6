"""A generator trained on from a pipeline becomes a pipeline of its own."""

from tests.tiny import make_pipeline
from wvq.generator.recipes import GeneratorRecipe
from wvq.pipelines.assemble import train_pipeline
from wvq.pipelines.image_generation import ImageGenerationPipeline
from wvq.settings.train import TrainConfig


def test_a_pipeline_is_trained_on_and_draws_its_new_classes(tiny_codes_dir, tiny_tokenizer_dir, tmp_path):
    make_pipeline(tiny_tokenizer_dir, class_names=["square", "star"]).save_pretrained(tmp_path / "start")
    recipe = GeneratorRecipe(
        out=str(tmp_path / "tuned"),
        codes=str(tiny_codes_dir),
        tokenizer=str(tmp_path / "start" / "tokenizer"),
        start=str(tmp_path / "start"),
        train=TrainConfig(images=32, batch_size=16, log_every=16),
    )
    result, _ = train_pipeline(recipe)
    assert result["images"] == 32
    pipe = ImageGenerationPipeline.from_pretrained(tmp_path / "tuned")
    assert pipe.generator.config.class_names == ["circle", "cross", "square"]
    assert len(pipe(class_labels=["circle", "square"]).images) == 2
    card = (tmp_path / "tuned" / "README.md").read_text(encoding="utf-8")
    assert f"The generator was trained on from `{tmp_path / 'start'}`." in card
