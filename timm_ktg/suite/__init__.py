"""Many recipes trained with many seeds, and compared: `accelerate launch -m timm_ktg.suite`."""
