from __future__ import annotations

from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from itertools import chain

import pytest
import torch
from torch import Tensor

from slim_core.data import (
    Dataset,
    StreamSource,
    TensorSource,
    batch_size,
    begin_epoch,
    check_reiterable,
    generator,
    length,
    map_tensors,
    slice_batch,
    take,
    to_device,
)
from slim_core.errors import DataError


def source(count: int = 10, batch: int = 4, **options: object) -> TensorSource:
    numbers = torch.arange(count)
    return TensorSource(numbers[:, None].float(), numbers, batch, **options)  # type: ignore[arg-type]


def targets(of: TensorSource) -> list[list[int]]:
    return [batch[1].tolist() for batch in of]


def test_without_shuffling_the_batches_come_in_order_and_the_last_one_is_short():
    assert targets(source()) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert len(source()) == 3


def test_drop_last_leaves_out_the_short_batch():
    assert targets(source(drop_last=True)) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert (len(source(drop_last=True)), source(drop_last=True).samples, source().samples) == (2, 8, 10)


def test_shuffling_is_a_permutation_that_depends_on_seed_and_epoch_alone():
    one, two = source(100, shuffle=True, seed=3), source(100, shuffle=True, seed=3)
    first = targets(one)
    assert sorted(chain.from_iterable(first)) == list(range(100))
    one.set_epoch(1)
    assert targets(one) != first
    two.set_epoch(1)
    list(two), torch.rand(7)
    assert targets(two) == targets(one)
    one.set_epoch(0)
    assert targets(one) == first
    assert targets(source(100, shuffle=True, seed=4)) != first


def test_inputs_stay_with_their_targets():
    for inputs, labels in source(50, shuffle=True):
        assert inputs[:, 0].tolist() == labels.tolist()


def test_prepare_comes_before_augment_and_augmentation_is_a_function_of_seed_epoch_and_batch():
    def noise(inputs: Tensor, random: torch.Generator) -> Tensor:
        return inputs + torch.rand(inputs.shape, generator=random)

    data = source(8, 4, seed=5, prepare=lambda inputs: inputs * 10, augment=noise)
    first, second = (inputs for inputs, _ in data)
    expected = torch.arange(4.0)[:, None] * 10 + torch.rand((4, 1), generator=generator(5, 0, 0))
    assert torch.equal(first, expected)
    assert not torch.equal(second - 40, first), "each batch has noise of its own"
    data.set_epoch(1)
    assert not torch.equal(next(iter(data))[0], first)


def test_plain_has_no_augmentation_but_is_prepared():
    data = source(8, 4, prepare=lambda inputs: inputs + 1, augment=lambda inputs, _: inputs * 0)
    assert next(iter(data.plain()))[0][:, 0].tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("wanted", [1, 4, 5, 8, 10])
def test_take_gives_exactly_so_many_samples(wanted: int):
    batches = take(source(), wanted)
    assert list(range(10))[:wanted] == [int(t) for _, labels in batches for t in labels]


def test_take_does_not_depend_on_the_epoch():
    data = source(100, shuffle=True, augment=lambda inputs, _: inputs * 0)
    before = take(data, 10)
    data.set_epoch(5)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(before, take(data, 10), strict=True))
    assert not torch.equal(take(data, 10, plain=False)[0][0], before[0][0])


def test_take_says_how_many_there_are():
    with pytest.raises(DataError, match="11 samples were asked for, but the data has 10"):
        take(source(), 11)
    with pytest.raises(DataError, match="cannot take 0"):
        take(source(), 0)


def test_take_from_a_loader_and_from_a_list():
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.arange(10), torch.arange(10)), 4)
    assert [len(batch[0]) for batch in take(loader, 6)] == [4, 2]
    assert [len(batch["x"]) for batch in take([{"x": torch.ones(3)}, {"x": torch.ones(3)}], 5)] == [3, 2]


def test_calibration_of_a_data_set():
    data = source(10, augment=lambda inputs, _: inputs * 0)
    taken = Dataset(data, data, (torch.zeros(1, 1),)).calibration(5)
    assert [int(t) for inputs, _ in taken for t in inputs[:, 0]] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TensorSource(torch.ones(3), torch.ones(2), 1), "3 inputs, but 2 targets"),
        (lambda: TensorSource(torch.ones(0), torch.ones(0), 1), "empty"),
        (lambda: TensorSource(torch.ones(3), torch.ones(3), 0), "batch_size"),
        (lambda: TensorSource(torch.ones(3), torch.ones(3), 4, drop_last=True), "do not fill one batch"),
        (lambda: batch_size(["no", "tensor"]), "no tensor"),
    ],
)
def test_bad_data_is_named(make, message: str):
    with pytest.raises(DataError, match=message):
        make()


@dataclass
class Output:
    logits: Tensor
    extra: Tensor | None = None


Pair = namedtuple("Pair", "a b")


@pytest.mark.parametrize(
    "value",
    [
        torch.ones(2),
        (torch.ones(2), [torch.ones(3), "text", None]),
        {"a": torch.ones(2), "b": {"c": torch.ones(1)}},
        OrderedDict(a=torch.ones(2)),
        Output(torch.ones(2)),
        Pair(torch.ones(1), 3),
    ],
)
def test_map_tensors_keeps_the_structure(value):
    doubled = map_tensors(value, lambda tensor: tensor * 2)
    assert type(doubled) is type(value)
    assert repr(doubled) == repr(value).replace("1.", "2.")


def test_slicing_a_batch_leaves_tensors_of_another_length_whole():
    batch = {"x": torch.arange(4), "scale": torch.tensor(1.0), "table": torch.arange(7)}
    sliced = slice_batch(batch, 1, 3)
    assert (sliced["x"].tolist(), sliced["scale"].item(), len(sliced["table"])) == ([1, 2], 1.0, 7)


def test_to_device_sets_the_layout_of_pictures_only():
    pictures, labels = to_device((torch.ones(2, 3, 4, 4), torch.ones(2)), torch.device("cpu"), torch.channels_last)
    assert pictures.is_contiguous(memory_format=torch.channels_last)
    assert labels.shape == (2,)


def test_the_length_of_what_does_not_know_it():
    class Stream(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
        def __iter__(self):
            yield from range(4)

    assert length(torch.utils.data.DataLoader(Stream(), 2)) is None
    assert length([1, 2]) == 2


def test_a_stream_is_made_anew_for_each_epoch():
    stream = StreamSource(lambda epoch: (epoch * 10 + number for number in range(3)), length=3)
    assert list(stream) == list(stream) == [0, 1, 2]
    begin_epoch(stream, 2)
    assert list(stream) == [20, 21, 22]
    assert (length(stream), length(StreamSource(lambda epoch: []))) == (3, None)


def test_a_loaders_sampler_and_data_set_hear_of_the_epoch():
    class Told(list[int]):
        epoch = -1

        def set_epoch(self, epoch: int) -> None:
            self.epoch = epoch

    data, sampler = Told([1, 2]), Told([0, 1])
    begin_epoch(torch.utils.data.DataLoader(data, sampler=sampler), 4)
    assert (data.epoch, sampler.epoch) == (4, 4)


def test_a_loaders_own_generator_gives_each_epoch_an_order_of_its_own():
    loader = torch.utils.data.DataLoader(range(20), 20, shuffle=True, generator=torch.Generator())
    orders = []
    for epoch in (0, 1, 0):
        begin_epoch(loader, epoch, seed=5)
        orders.append(next(iter(loader)).tolist())
    assert orders[0] == orders[2] != orders[1]


def test_an_iterator_is_refused():
    with pytest.raises(DataError, match="training data is an iterator"):
        check_reiterable((number for number in range(3)), "training")
    check_reiterable([1], "training")
