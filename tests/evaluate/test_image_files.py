import zipfile

import numpy as np
import pytest
from PIL import Image

from regvq_jax.errors import UserError
from regvq_jax.evaluate.image_files import has_images, open_images


def write(folder, names, size=(8, 6)):
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (10 * i, 0, 0)).save(folder / name)


def reds(images):
    return [int(x) for b in images.batches() for x in b["image"][b["valid"], 0, 0, 0]]


def test_a_folder_in_the_order_of_its_paths(tmp_path):
    write(tmp_path, ["b/1.png", "a.png", "b/0.png"])
    (tmp_path / "notes.txt").write_text("no image")
    images = open_images(str(tmp_path), batch_size=2)
    assert images.count == 3 and reds(images) == [10, 20, 0]
    assert images.element_name(1).endswith("b/0.png") and images.shape == "8x6"
    assert reds(open_images(str(tmp_path), batch_size=2, limit=2)) == [10, 20]
    assert open_images(str(tmp_path), batch_size=2, size=4).shape == "4x4"


def test_archives_and_arrays(tmp_path):
    write(tmp_path / "raw", ["0.png", "1.png"])
    with zipfile.ZipFile(tmp_path / "raw.zip", "w") as archive:
        for path in sorted((tmp_path / "raw").iterdir()):
            archive.write(path, path.name)
    assert reds(open_images(str(tmp_path / "raw.zip"), batch_size=2)) == [0, 10]
    pixels = np.arange(3 * 4 * 4 * 3, dtype=np.uint8).reshape(3, 4, 4, 3)
    np.savez(tmp_path / "samples.npz", pixels)
    images = open_images(str(tmp_path / "samples.npz"), batch_size=2)
    np.testing.assert_array_equal(images.image_at(2), pixels[2])
    assert has_images(str(tmp_path / "samples.npz")) and images.count == 3
    np.savez(tmp_path / "statistics.npz", mu=np.zeros(2), sigma=np.eye(2))
    assert not has_images(str(tmp_path / "statistics.npz"))
    # ADM's reference batches hold statistics beside images: they are statistics then.
    np.savez(tmp_path / "adm.npz", pixels, mu=np.zeros(2), sigma=np.eye(2))
    assert not has_images(str(tmp_path / "adm.npz"))


def test_a_changed_file_is_another_set(tmp_path):
    write(tmp_path, ["0.png", "1.png"])
    first = open_images(str(tmp_path), batch_size=2).identity
    assert open_images(str(tmp_path), batch_size=1).identity == first
    Image.new("RGB", (8, 6), (99, 9, 0)).save(tmp_path / "1.png")
    assert open_images(str(tmp_path), batch_size=2).identity != first


def test_mixed_formats_are_a_warning(tmp_path, caplog):
    write(tmp_path, ["0.png", "1.png", "2.jpg"])
    with caplog.at_level("WARNING", "regvq_jax"):
        open_images(str(tmp_path), batch_size=2)
    assert "mixes file formats (2 png, 1 jpg): lossy compression changes FID" in caplog.text
    caplog.clear()
    write(tmp_path / "same", ["0.jpg", "1.jpeg"])
    with caplog.at_level("WARNING", "regvq_jax"):
        open_images(str(tmp_path / "same"), batch_size=2)
    assert not caplog.text


def test_bad_input(tmp_path):
    write(tmp_path / "sizes", ["0.png"])
    write(tmp_path / "sizes", ["1.png"], size=(9, 6))
    with pytest.raises(UserError, match=r"0.png has 8x6 pixels, .*1.png 9x6: .*--size=N"):
        reds(open_images(str(tmp_path / "sizes"), batch_size=2))
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.npz").write_text("nothing")
    np.savez(tmp_path / "float.npz", np.zeros((2, 4, 4, 3)))
    for name, words in (
        ("nowhere", "nowhere does not exist"),
        ("empty", "has no images"),
        ("text.npz", "Cannot read"),
        ("float.npz", r"arr_0 is float64 \[2, 4, 4, 3\], expected uint8"),
    ):
        with pytest.raises(UserError, match=words):
            open_images(str(tmp_path / name), batch_size=2)
