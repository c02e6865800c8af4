"""Run by two processes: rank 0 has text alone, rank 1 an image; gradients must be those of one process with both.

Prints the largest difference, first with DistributedDataParallel, then sharded, then with ZeRO-3 where it is installed;
and how far, sharded in bfloat16, a loss is from the weighted sum of the losses of its tokens.
"""

from importlib.util import find_spec

import torch
from toy_run import model_and_encoder, three_samples

from infinity_mm.data.encode import IGNORE
from infinity_mm.data.packing import pack
from infinity_mm.training import zero3
from infinity_mm.training.loss import label_weights, local_loss, total_weight
from infinity_mm.training.sharding import gradient, shard, whole
from infinity_mm.training.start import new_accelerator

torch.set_num_threads(1)
accelerator = new_accelerator("fp32")
model, encoder = model_and_encoder()
image, _, text = (pack([[sample]], 128, 3) for sample in three_samples(encoder))
weight = total_weight([image, text], "token")
for batch in (image, text):
    local_loss(model, batch, total_weight=weight).loss.backward()
wanted = {name: p.grad.clone() for name, p in model.named_parameters()}
own = (text, image)[accelerator.process_index]
for way in ("ddp", "fsdp", "zero3") if find_spec("deepspeed") else ("ddp", "fsdp"):
    model, _ = model_and_encoder()
    wrapped, optimizer = model, torch.optim.AdamW(model.parameters())
    if way == "ddp":
        wrapped = accelerator.prepare(model)
    elif way == "fsdp":
        shard(model, accelerator, bf16=False)
    else:
        wrapped, optimizer = zero3.start(model, optimizer, accelerator, bf16=False)
    loss = local_loss(wrapped, own, total_weight=weight).loss * 2
    wrapped.backward(loss) if way == "zero3" else loss.backward()
    largest = 0.0
    for name, parameter in model.named_parameters():
        grad = gradient(parameter, optimizer)
        assert grad is not None
        largest = max(largest, float((whole(grad).view(wanted[name].shape) - wanted[name]).abs().max()))
    if accelerator.is_main_process:
        print(way, largest)
model, _ = model_and_encoder()
shard(model, accelerator, bf16=True)
# Neither this number nor the weights are any of bfloat16, whose next ones are 99,840 and 100,352.
found = local_loss(model, own, total_weight=100_231.0, weighting="square_root")
weights = label_weights(own.labels, own.sample_ids, "square_root")[own.labels != IGNORE]
wanted_loss = float((found.token_losses * weights).sum())
if accelerator.is_main_process:
    print("bf16", float(found.loss.detach()) * 100_231.0 / wanted_loss - 1)
accelerator.wait_for_everyone()  # nobody may leave while another still sums
accelerator.end_training()
