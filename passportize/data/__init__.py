"""The data sets that demo, examples and benchmarks use, as plain tensors; nothing is printed."""

from __future__ import annotations

from passportize.data.digits import load_digits_images
from passportize.data.fashion_mnist import load_fashion_mnist
from passportize.data.images import ImageData, batches
from passportize.data.kicad import KiCadShapes
from passportize.data.modelnet import load_modelnet
from passportize.data.parts import Parts
from passportize.data.pictures import load_caltech, load_cifar
from passportize.data.sets import SETS, load_parts
from passportize.data.shapenet import load_shapenet
from passportize.data.shapes import SHAPE_CLASSES, generate_shapes
from passportize.data.splits import family_split, stratified_split

__all__ = [
    "SETS",
    "SHAPE_CLASSES",
    "ImageData",
    "KiCadShapes",
    "Parts",
    "batches",
    "family_split",
    "generate_shapes",
    "load_caltech",
    "load_cifar",
    "load_digits_images",
    "load_fashion_mnist",
    "load_modelnet",
    "load_parts",
    "load_shapenet",
    "stratified_split",
]
