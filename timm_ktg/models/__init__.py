"""Networks for 32 x 32 images; importing this package registers them with timm."""

from timm_ktg.models import cifar_resnet, cifar_wrn
from timm_ktg.models.cifar_net import CifarNet

__all__ = ["CifarNet", "cifar_resnet", "cifar_wrn"]
