"""The simulator of radar columns: formulas in SI units, the ideal response to a point, seeds, and what focuses."""

from dataclasses import replace

import numpy as np
import pytest

from llm_finetuner.benchmark.focus import focused, impulse
from llm_finetuner.data.sar import AIRBORNE, RADARS, SENTINEL_1, Radar, echo, focus, point_target
from llm_finetuner.data.sar_processors import PROCESSORS
from llm_finetuner.data.sar_scenes import Scene, margin, simulate
from llm_finetuner.errors import DataError, RecipeError

# Ba = 200 / 1.5 Hz over T = 9 s
LONG = Radar(
    wavelength=0.03, velocity=100, slant_range=45e3, antenna_length=1.5, pulse_rate=1.25 * 200 / 1.5,
    beam="rect", taper="none",
)  # fmt: skip
QUIET = Scene(clutter_db=-300, noise_db=-300, bursts=0, losses=0, range_spread=0)


def response_at(radar: Radar, length: int, position: float, phase: float = 0.0) -> np.ndarray:
    column = np.exp(1j * np.radians(phase)) * point_target(radar, length, position)
    return focus(radar, column[None], np.array([radar.slant_range]))[0]


def test_the_ideal_response_has_the_side_lobes_and_the_width_of_theory():
    assert LONG.time_bandwidth >= 1000
    found = impulse(response_at(LONG, 4096, 2048.0), 2048.0)
    assert abs(found.pslr + 13.26) <= 0.05
    assert found.width == pytest.approx(0.886 * LONG.oversampling, rel=0.01)
    assert abs(found.location) < 1e-3 and abs(found.phase) < 0.05
    assert found.peak == pytest.approx(1, abs=1e-2)


def test_a_hamming_taper_widens_the_response_and_lowers_its_side_lobes():
    found = impulse(response_at(replace(LONG, taper="hamming"), 4096, 2048.0), 2048.0)
    assert found.width == pytest.approx(1.303 * LONG.oversampling, rel=0.02)  # 1.30 / Ba: Harris 1978
    assert found.pslr < -38


@pytest.mark.parametrize("radar", RADARS.values(), ids=RADARS)
@pytest.mark.parametrize(("off", "phase"), [(0.0, 0.0), (0.37, 80.0), (-0.5, -179.0)])
def test_a_point_between_pulses_is_found_where_it_is_with_its_phase(radar, off, phase):
    length = 4 * int(radar.aperture)
    position = length // 2 + off
    found = impulse(response_at(radar, length, position, phase), position, phase)
    assert abs(found.location) < 0.02 and abs(found.phase) < 0.5
    assert found.pslr < -40  # Hamming on the pattern of the beam


def test_formulas_agree_with_each_other_and_with_the_geometry():
    for radar in (AIRBORNE, SENTINEL_1, LONG):
        assert radar.doppler_bandwidth == pytest.approx(radar.chirp_rate * radar.aperture_time)
        assert radar.time_bandwidth == pytest.approx(
            2 * radar.wavelength * radar.slant_range / radar.antenna_length**2
        )
    assert AIRBORNE.time_bandwidth == pytest.approx(50, rel=0.01)
    assert AIRBORNE.aperture == pytest.approx(62, abs=1)
    assert SENTINEL_1.chirp_rate == pytest.approx(2137, abs=1)  # Hz a second
    assert SENTINEL_1.migration == pytest.approx(2.2, abs=0.05)  # metres


def test_the_phase_of_an_echo_is_that_of_the_two_way_path():
    radar, time = replace(AIRBORNE, beam="rect"), np.array([-0.2, 0.0, 0.1])
    path = np.sqrt(radar.slant_range**2 + (radar.velocity * time) ** 2) - radar.slant_range
    want = np.exp(-4j * np.pi * path / radar.wavelength)
    assert np.abs(echo(radar, np.float64(radar.slant_range), time) - want).max() < 1e-7
    beyond = radar.aperture_time / 2 * 1.01
    assert echo(radar, np.float64(radar.slant_range), np.array([beyond]))[0] == 0


def test_the_doppler_frequency_falls_at_the_chirp_rate():
    radar = replace(AIRBORNE, beam="rect")
    step = 1e-4
    turns = np.unwrap(np.angle(echo(radar, np.float64(radar.slant_range), step * np.arange(-200, 201)))) / (
        2 * np.pi
    )
    frequency = np.gradient(turns, step)
    assert np.gradient(frequency, step)[200] == pytest.approx(-radar.chirp_rate, rel=1e-3)
    assert abs(frequency[200]) < 0.1  # zero Doppler at the closest approach


def test_the_truth_is_symmetric_in_the_flight():
    """Zero Doppler: a scene flown the other way is the same scene the other way round."""
    position, length = 131.4, 256
    there = response_at(AIRBORNE, length, position)
    back = response_at(AIRBORNE, length, length - 1 - position)
    assert np.abs(there - back[::-1]).max() < 1e-9


def test_uncorrected_migration_weakens_and_widens_the_response():
    moving = replace(SENTINEL_1, range_cell=1.0)
    whole, part = (impulse(response_at(radar, 4096, 2048.0), 2048.0) for radar in (SENTINEL_1, moving))
    assert part.peak < 0.95 * whole.peak and part.width > whole.width


def test_columns_hang_on_the_seed_and_their_number_alone():
    scene = Scene()
    four, again = (simulate(AIRBORNE, scene, 4, 3) for _ in range(2))
    assert np.array_equal(four.inputs, again.inputs) and np.array_equal(four.truth, again.truth)
    later = simulate(AIRBORNE, scene, 2, 3, first=2)
    assert np.array_equal(four.inputs[2:], later.inputs) and np.array_equal(four.truth[2:], later.truth)
    assert not np.array_equal(four.inputs[0], simulate(AIRBORNE, scene, 1, 4).inputs[0])


def test_columns_are_as_they_are_described():
    scene = Scene()
    found = simulate(AIRBORNE, scene, 64, 0)
    assert found.inputs.shape == (64, 256, 2) and found.truth.shape == (64, 256, 1)
    assert found.inputs.dtype == found.truth.dtype == np.complex64
    place = found.inputs[..., 1]
    assert place.real.min() >= 0 and place.real.max() <= 1 and np.ptp(place.real, axis=1).max() == 0
    assert np.allclose(place.imag, np.linspace(0, 1, 256)[None])
    share = (found.slant_range / AIRBORNE.slant_range - 0.9) / 0.2
    assert np.allclose(place.real[:, 0], share, atol=1e-6)
    edge = margin(AIRBORNE, scene)
    assert found.rows == slice(edge, 256 - edge) and edge >= 0.6 * AIRBORNE.aperture
    lost = (found.echo == 0).any(1).mean()
    assert 0.15 < lost < 0.45


def test_levels_are_those_of_the_scene():
    noise = simulate(AIRBORNE, replace(QUIET, points=0, noise_db=-20), 64, 0).echo
    assert 10 * np.log10((np.abs(noise) ** 2).mean()) == pytest.approx(-20, abs=0.2)
    burst = simulate(AIRBORNE, replace(QUIET, points=0, bursts=1), 8, 0).echo
    assert np.abs(burst).max() == pytest.approx(10 ** (15 / 20), rel=1e-4)
    assert set((np.abs(burst) > 1).sum(1)) <= set(range(3, 12))


def test_speckle_is_circular_gaussian_and_focuses_to_its_own_level():
    found = simulate(AIRBORNE, replace(QUIET, points=0, clutter_db=-10), 64, 0)
    truth = found.truth[:, found.rows, 0]
    power = np.abs(truth) ** 2
    assert (power**2).mean() / power.mean() ** 2 == pytest.approx(2, abs=0.15)  # exponential
    assert abs((truth**2).mean()) < 0.1 * power.mean()


def test_a_clean_scene_is_focused_by_the_matched_filter_and_interference_asks_for_blanking():
    clean = simulate(AIRBORNE, replace(Scene(), noise_db=-300, bursts=0, losses=0), 32, 0)
    exact = PROCESSORS["matched filter"](AIRBORNE, clean)[:, clean.rows]
    assert focused(exact, clean.truth[:, clean.rows, 0]).nmse < 1e-9
    dirty = simulate(AIRBORNE, Scene(), 256, 1)
    truth = dirty.truth[:, dirty.rows, 0]
    scores = {
        name: focused(process(AIRBORNE, dirty)[:, dirty.rows], truth) for name, process in PROCESSORS.items()
    }
    assert scores["matched filter"].nmse_db > 0  # bursts of interference are focused too
    assert scores["matched filter, pulses blanked"].nmse_db < -7


def test_a_radar_that_cannot_be_is_refused():
    with pytest.raises(RecipeError, match="below the Doppler bandwidth"):
        replace(AIRBORNE, pulse_rate=10)
    with pytest.raises(RecipeError, match="wavelength"):
        replace(AIRBORNE, wavelength=-1)
    with pytest.raises(RecipeError, match="half a wavelength"):
        replace(AIRBORNE, antenna_length=0.01, pulse_rate=1e6)
    with pytest.raises(RecipeError, match="no row with a whole aperture"):
        simulate(AIRBORNE, Scene(length=64), 1, 0)
    with pytest.raises(RecipeError, match="longer than length"):
        Scene(length=8)
    for name in ("clutter_db", "noise_db", "burst_db"):
        for level in (np.nan, np.inf, 400.0):
            with pytest.raises(RecipeError, match=name):
                Scene(**{name: level})


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(DataError, match="no peak"):
        impulse(np.zeros(64), 32)
    with pytest.raises(DataError, match="NaN"):
        impulse(np.full(64, np.nan), 32)
    with pytest.raises(DataError, match="zero everywhere"):
        focused(np.ones((2, 32)), np.zeros((2, 32)))
    with pytest.raises(DataError, match="nothing to measure"):
        focused(np.empty((0, 32)), np.empty((0, 32)))
