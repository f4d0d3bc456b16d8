"""A callback for Lightning: the network of a LightningModule with a passport.

    Trainer(callbacks=[PassportCallback(passport, claim="acme.claim.safetensors"), ...])

``training_step`` stays as it is. While ``fit`` runs, it is called twice in each step: with the
batch through the public branch, and with the first samples of it through the private branch, which
leaves nothing behind and logs nothing. Both losses and the sign loss are what is minimised.
"""

from passportize.integrations.lightning.callback import PassportCallback

__all__ = ["PassportCallback"]
