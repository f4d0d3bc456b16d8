"""What a training step costs with passports."""
