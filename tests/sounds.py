"Sounds that are made for tests."
import numpy as np


def spoken(seed=0, seconds=1.0, rate=24_000):
    """A voice that babbles, `(samples,)`: its pitch rises and falls, and a resonance moves as mouths move it.

    Each `seed` gives another sound; a longer one begins as a shorter one.
    """
    rng, t = np.random.default_rng(seed), np.arange(int(seconds * rate)) / rate
    steps = np.arange(0, 60, 0.1)  # seconds of syllables
    turns = np.arange(len(steps)) % 2 * 2 - 1
    pitch = rng.uniform(110, 220) * np.exp(
        np.interp(t, steps, turns * rng.uniform(0.05, 0.15, len(steps)))
    )
    mouth = np.interp(t, steps, 1_100 + turns * rng.uniform(200, 800, len(steps)))
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    parts = [np.sin(k * phase) / (1 + ((k * pitch - mouth) / 300) ** 2) for k in range(1, 16)]
    return 0.15 * sum(parts)
