import pytest

from utils.training.learning_rate import learning_rate


def test_full_schedule_of_270_epochs_by_hand():
    def rate(epoch):  # one update an epoch
        return learning_rate(0.5, 500, epoch, 270)
    assert [rate(epoch) for epoch in (0, 6, 14, 15, 89)] == \
        pytest.approx([0.5 / 15, 0.5 * 7 / 15, 0.5, 0.5, 0.5])
    assert [rate(epoch) for epoch in (90, 179, 180, 239, 240, 269)] == \
        pytest.approx([0.05, 0.05, 0.005, 0.005, 0.0005, 0.0005])


def test_steps_of_a_short_run_fall_in_the_middle_of_an_epoch():
    rates = [learning_rate(1.0, 500, update, 27) for update in range(27)]  # a tenth of 270
    assert rates[0] == pytest.approx(10 / 15)
    assert rates[1:9] == pytest.approx([1.0] * 8)
    assert rates[9:18] == pytest.approx([0.1] * 9)
    assert rates[18:24] == pytest.approx([0.01] * 6)
    assert rates[24:] == pytest.approx([0.001] * 3)


def test_rate_scales_with_the_batch():
    assert learning_rate(1.0, 100, 50, 270) == pytest.approx(0.2)
