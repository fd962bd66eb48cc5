"""How node agents come to be, bundled."""
