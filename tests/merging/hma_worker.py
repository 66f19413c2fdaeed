"""One of two processes of `test_hma.py`, in torch's usual environment: both have one process's ratios."""

from __future__ import annotations

import torch
import torch.distributed as dist
from test_hma import data, parents
from torch.nn.parallel import DistributedDataParallel

from untaxed.merging import learn_ratios, partition

torch.set_num_threads(1)
model, initial, aligned = parents()
cut = partition(model, 3)
batches = data(model, batch_size=5)  # 3 rows and 2; the last batch has 4
batches.append(batches[0].rows(0, 1))  # one process has no row at all
arguments = {"initial_share": 0.2, "epochs": 4, "held_out": batches[:1], "rows_at_once": 2}
alone = learn_ratios(model, initial, aligned, cut, batches, **arguments)
dist.init_process_group("gloo")
try:
    for module in (model, DistributedDataParallel(model)):
        together = learn_ratios(module, initial, aligned, cut, batches, **arguments)
        values = torch.tensor([*together.ratios.values(), *together.held_out.values()], dtype=torch.float64)
        others = [torch.empty_like(values) for _ in range(2)]
        dist.all_gather(others, values)
        assert torch.equal(*others), "the processes differ"
        expected = torch.tensor([*alone.ratios.values(), *alone.held_out.values()], dtype=torch.float64)
        assert torch.allclose(values, expected, atol=1e-9), (values, expected)
finally:
    dist.destroy_process_group()
