"""The commands behind `tokentra`, by what they are for: platform, setup, work, look."""
