import json

import numpy as np
import pytest
from PIL import Image

from regvq_jax.errors import UserError
from regvq_jax.evaluate.__main__ import main
from tests.evaluate.toy_protocol import toy  # noqa: F401


@pytest.fixture
def folders(tmp_path, monkeypatch, toy):  # noqa: F811
    """`real`, `alike` (other draws of the same) and `dark`, 24 images each."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name, most in (("real", 256), ("alike", 256), ("dark", 64)):
        (tmp_path / name).mkdir()
        for i in range(24):
            pixels = rng.integers(0, most, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{i:02d}.png")
    return tmp_path


def figures(path):
    return json.loads(path.read_text())


def test_folders(folders, capsys):
    for name in ("alike", "dark"):
        main(["--real=real", f"--fake={name}", "--protocol=toy", "--batch_size=16"])
    assert "results/dark.json" in capsys.readouterr().out
    alike, dark = (figures(folders / "results" / f"{name}.json") for name in ("alike", "dark"))
    assert alike["metrics"]["fd_toy"] < dark["metrics"]["fd_toy"]
    assert alike["metrics"]["kid_toy"] < dark["metrics"]["kid_toy"]
    protocol = dark["protocols"]["toy"]
    assert protocol["real_images"] == protocol["fake_images"] == 24 and protocol["weights_sha256"] == "0" * 64
    assert dark["settings"]["real"]["shape"] == "8x8" and dark["versions"]["jax"]
    assert "biased" in dark["warnings"][0]
    # The whole set is its own copy.
    main(["--real=real", "--fake=real", "--protocol=toy", "--output=same.json"])
    same = figures(folders / "same.json")["metrics"]
    assert same["fd_toy"] == pytest.approx(0, abs=1e-6) and same["precision_toy"] == same["recall_toy"] == 1


def test_statistics_stand_for_the_real_images(folders, capsys):
    main(["--real=real", "--save_statistics=reference.npz", "--protocol=toy"])
    assert "reference.npz" in capsys.readouterr().out
    main(["--real=real", "--fake=dark", "--protocol=toy"])
    whole = figures(folders / "results" / "dark.json")["metrics"]["fd_toy"]
    main(["--real=reference.npz", "--fake=dark", "--protocol=toy"])
    again = figures(folders / "results" / "dark.json")
    assert again["metrics"] == {"fd_toy": pytest.approx(whole, rel=1e-9)}


def test_statistics_of_another_protocol(folders, caplog):
    main(["--real=real", "--save_statistics=reference.npz", "--protocol=toy"])
    with np.load("reference.npz") as content:
        arrays = dict(content)
    np.savez("other.npz", **arrays | {"about_preprocessing": "5 x 5"})
    with pytest.raises(UserError, match=r"another protocol \(preprocessing: 5 x 5 there, 4 x 4 here\)"):
        main(["--real=other.npz", "--fake=dark", "--protocol=toy"])
    np.savez("small.npz", mu=np.zeros(3), sigma=np.eye(3))
    with pytest.raises(UserError, match="statistics of 3 features, and toy has 48"):
        main(["--real=small.npz", "--fake=dark", "--protocol=toy"])
    np.savez("foreign.npz", mu=arrays["mu"], sigma=arrays["sigma"])
    with caplog.at_level("WARNING", "regvq_jax"):
        main(["--real=foreign.npz", "--fake=dark", "--protocol=toy"])
    assert "does not say under which protocol" in caplog.text


def test_sizes_that_differ_between_both_sides(folders, caplog):
    (folders / "large").mkdir()
    for path in (folders / "real").iterdir():
        Image.open(path).resize((16, 16)).save(folders / "large" / path.name)
    with caplog.at_level("WARNING", "regvq_jax"):
        main(["--real=real", "--fake=large", "--protocol=toy"])
    assert "images of 8x8 pixels and large of 16x16" in caplog.text


def test_bad_input(folders):
    for path in list((folders / "dark").iterdir())[9:]:
        path.unlink()
    for words, args in (
        (r"dark: 9 image\(s\) are too few to compare", ["--real=real", "--fake=dark", "--protocol=toy"]),
        ("nowhere does not exist", ["--real=nowhere", "--fake=dark", "--protocol=toy"]),
        ("--fake is missing", ["--real=real"]),
        ('no protocol "toi". Did you mean "toy"', ["--real=real", "--fake=dark", "--protocol=toi"]),
        ("invalid choice: 'generatoin'", ["generatoin", "run"]),
        ("must end in .npz", ["--real=real", "--save_statistics=reference.csv", "--protocol=toy"]),
    ):
        with pytest.raises(UserError, match=words):
            main(args)
