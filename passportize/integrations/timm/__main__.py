"""``python -m passportize.integrations.timm`` runs a training script with a passport."""

from passportize.integrations.timm.launcher import launch

if __name__ == "__main__":
    launch()
