"""How models learn with passports: over learning rates, batch sizes and families of timm."""
