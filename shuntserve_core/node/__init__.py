"""The node agent: owns the tensor stores and engine workers of one machine."""
