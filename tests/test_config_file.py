"""A config file with its choices and changed fields, without absl's flags."""

import pytest

from regvq_jax.config_file import load_config_file
from regvq_jax.errors import UserError


def test_choices_and_changed_fields():
    config = load_config_file(
        "configs/emoji.py:map-ar", ["--config.data.image_size=32", "--config.data.source=emoji"]
    )
    assert (config.prior.name, config.data.image_size, config.data.source) == ("autoregressive", 32, "emoji")
    assert config.is_locked


@pytest.mark.parametrize(
    ("spec", "overrides", "message"),
    [
        ("configs/emojii.py", [], r"emojii.py does not exist; here there are: .*emoji.py"),
        ("configs/emoji.py:mapp-ar", [], 'Did you mean "map-ar"'),
        ("configs/emoji.py", ["--config.data.sourc=3"], 'Did you mean "source"'),
        ("configs/emoji.py", ["--config.data.image_size=x"], "image_size"),
        ("configs/emoji.py", ["--config.tokenizer.lr=1"], r"config.tokenizer is '', which has no field 'lr'"),
        ("configs/emoji.py", ["--config.seed.x=1"], r"config.seed is 0, which has no field 'x'"),
        ("configs/emoji.py", ["--config.datta.seed=1"], "config has no field 'datta' .*fields: .*data,"),
        ("configs/emoji.py", ["--config.seed=1", "-config.stages[9]=x"], r"^-config.stages\[9\]=x .*range"),
        ("configs/emoji.py", ["--config.stages[0].x=x"], r"^--config.stages\[0\].x=x cannot be set"),
    ],
)
def test_mistakes(spec, overrides, message):
    with pytest.raises(UserError, match=message):
        load_config_file(spec, overrides)


@pytest.mark.parametrize("overrides", [[], ["--config.seed=1"]])
def test_a_config_file_that_fails_shows_its_own_error(overrides, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("def get_config():\n    return {}['mistyped']\n")
    with pytest.raises(KeyError, match="mistyped"):
        load_config_file(str(path), overrides)
