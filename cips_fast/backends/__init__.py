"""How the operations of `functional` and `synthesis` are computed, and which way serves given tensors."""
