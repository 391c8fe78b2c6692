"""Where the rules come from: public threads by their titles, papers by section, measurements of this project."""

from __future__ import annotations

from workbench.doctor.finding import Source

_GITHUB = "https://github.com"


def _thread(repository: str, number: int, title: str) -> Source:
    return Source(f"{repository} #{number}: {title}", f"{_GITHUB}/{repository}/issues/{number}")


DINO_43 = _thread("facebookresearch/dino", 43, "model collapse after a few steps")
DINO_58 = _thread("facebookresearch/dino", 58, "Nan loss")
DINO_61 = _thread("facebookresearch/dino", 61, "Loss not dropping on custom dataset :(")
DINO_110 = _thread("facebookresearch/dino", 110, "Does batch size affect loss converge?")
DINO_246 = _thread("facebookresearch/dino", 246, "Loss doesn't decrease")
DINO_287 = _thread("facebookresearch/dino", 287, "loss increase sharply after the first epoch")
DINOV2_77 = _thread("facebookresearch/dinov2", 77, "input resolution of segmentation")
DINOV2_143 = _thread("facebookresearch/dinov2", 143, "loss does not converge")
DINOV2_173 = _thread("facebookresearch/dinov2", 173, "Ideal batch size for finetuning")
DINOV2_204 = _thread("facebookresearch/dinov2", 204, "Possible to continue pretraining?")
DINOV2_275 = _thread("facebookresearch/dinov2", 275, "Expected behavior of iBOT loss?")
DINOV2_293 = _thread("facebookresearch/dinov2", 293, "How to identify high-norm patches")
DINOV2_298 = _thread("facebookresearch/dinov2", 298, "Train loss during training not changing.")
DINOV2_314 = _thread("facebookresearch/dinov2", 314, "loss become Nan without Fsdp")
DINOV2_341 = _thread("facebookresearch/dinov2", 341, "How is the data loading handled after a restart ?")
DINOV2_349 = _thread("facebookresearch/dinov2", 349, "Optimal batch size")
DINOV2_407 = _thread("facebookresearch/dinov2", 407, "Strange collapse issue with the dino loss")
DINOV2_474 = _thread(
    "facebookresearch/dinov2", 474, "Regarding the loss issue of training from scratch on one's own dataset"
)
DINOV2_479 = _thread(
    "facebookresearch/dinov2",
    479,
    "if model is convergence. what range dose total loss in?Did someone find a set of hyper parameters adapt a small "
    "batch size?",
)
DINOV2_492 = _thread("facebookresearch/dinov2", 492, "Dinov2 Traing error")
DINOV2_512 = _thread(
    "facebookresearch/dinov2", 512, "Poor knn evaluation value for vit_small model trained on Imagenet-1k dataset"
)
DINOV3_61 = _thread(
    "facebookresearch/dinov3",
    61,
    "DINOv3: Missing RGB mean/std used for SAT-493M pretraining (non-ImageNet normalization)",
)
DINOV3_102 = _thread("facebookresearch/dinov3", 102, "[Question] 3 stage training process")
DINOV3_141 = _thread("facebookresearch/dinov3", 141, "Training ViT-H/G with DinoV3 on domain-specific data")
DINOV3_165 = _thread("facebookresearch/dinov3", 165, "Gram anchor pretraining with previous ckpt as Gram teacher")
DINOV3_199 = _thread(
    "facebookresearch/dinov3", 199, "DINO loss does not decrease when training DINO head on custom dataset"
)
DINOV3_220 = _thread("facebookresearch/dinov3", 220, "How to use gram anchoring loss in my custom dataset?")
DINOV3_289 = _thread(
    "facebookresearch/dinov3", 289, "Request to share the pretrained heads from unsupervised pretraining"
)
DINOV3_293 = _thread("facebookresearch/dinov3", 293, "Gram Anchoring Stage")
LIGHTLY_442 = _thread("lightly-ai/lightly-train", 442, "[QUESTION] Loss increase when training dinov2")
MOCO_9 = _thread("facebookresearch/moco", 9, "Loss curves on ImageNet")
MOCO_V3_23 = _thread("facebookresearch/moco-v3", 23, "How about the loss converges during training?")
VISION_8985 = _thread(
    "pytorch/vision", 8985, "torchvision 0.21.0+cu126 RuntimeError: operator torchvision::nms does not exist"
)
WANDB_1383 = _thread("wandb/wandb", 1383, "Each added image is stored as a separate file to disk")
DETECTRON2_143 = _thread("facebookresearch/detectron2", 143, "problems in training: image file is truncated?")
REPVGG_40 = _thread("DingXiaoH/RepVGG", 40, "Data loading time during training")
DEIT_173 = _thread("facebookresearch/deit", 173, "Resume Broken")

DINO_PAPER = Source("DINO (Caron et al. 2021, arXiv 2104.14294), section 3.1")
DINO_COLLAPSE = Source("DINO (Caron et al. 2021, arXiv 2104.14294), section 5.3")
DINOV3_DENSE = Source("DINOv3 (Simeoni et al. 2025, arXiv 2508.10104), section 4.1")
DINOV3_GRAM = Source("DINOv3 (Simeoni et al. 2025, arXiv 2508.10104), sections 4.2 and 4.3")
DENSE_DEGRADATION = Source("Self-supervised dense degradation (Dai et al. 2025, arXiv 2510.17299)")
SIMSIAM = Source("SimSiam (Chen, He 2021, arXiv 2011.10566), section 4.1")
RANKME = Source("RankMe (Garrido et al. 2023, arXiv 2210.02885), section 3")
RUN_FORMAT = Source("docs/run-format.md")
LOG = Source("docs/log.md")
