"""Operations of a forward pass: `<op>/reference.py` defines each one in plain torch.

Faster variants come beside the reference and are tested against it.
"""
