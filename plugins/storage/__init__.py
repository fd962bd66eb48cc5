"""Weight stores, bundled."""
