"""The definition of every operator in plain PyTorch; serves any device that has nothing faster."""
