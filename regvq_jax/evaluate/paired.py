"""How far a reconstruction is from its original, image by image."""

import jax
import jax.numpy as jnp
import numpy as np

_WINDOW, _SIGMA = 11, 1.5


def psnr(images: jax.Array, reconstructions: jax.Array) -> jax.Array:
    """Peak signal-to-noise ratio of each image.

    Args:
        images: uint8 [B, H, W, 3].
        reconstructions: uint8 [B, H, W, 3].

    Returns:
        float32 [B] in dB, for a peak of 255; an exact copy counts as an error of 0.01 grey levels.
    """
    difference = images.astype(jnp.float32) - reconstructions.astype(jnp.float32)
    squared_error = jnp.mean(difference**2, axis=(1, 2, 3))
    return 10.0 * jnp.log10(255.0**2 / jnp.maximum(squared_error, 1e-4))


def ssim(images: jax.Array, reconstructions: jax.Array) -> jax.Array:
    """Structural similarity of each image (Wang et al. 2004), the mean over colours and whole windows.

    Windows are Gaussian, 11 pixels wide with standard deviation 1.5; K1 = 0.01, K2 = 0.03, peak 255; moments
    are those of the window, not corrected for its size.

    Args:
        images: uint8 [B, H, W, 3], at least 11 x 11.
        reconstructions: uint8 [B, H, W, 3].

    Returns:
        float32 [B], at most 1.
    """
    places = np.arange(_WINDOW) - _WINDOW // 2
    window = np.exp(-0.5 * (places / _SIGMA) ** 2)
    window = jnp.asarray(window / window.sum(), jnp.float32)

    def blur(x):
        # One axis after the other, whole windows only.
        for axis in (1, 2):
            size = x.shape[axis] - _WINDOW + 1
            parts = [jax.lax.slice_in_dim(x, i, i + size, axis=axis) for i in range(_WINDOW)]
            x = sum(weight * part for weight, part in zip(window, parts, strict=True))
        return x

    # About zero: float32 has digits enough for squares then.
    x, y = (z.astype(jnp.float32) - 127.5 for z in (images, reconstructions))
    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    light_x, light_y = mean_x + 127.5, mean_y + 127.5
    likeness = (2 * light_x * light_y + c1) * (2 * covariance + c2)
    likeness /= (light_x**2 + light_y**2 + c1) * (var_x + var_y + c2)
    return jnp.mean(likeness, axis=(1, 2, 3))
