"""Programs that make documents from the code."""
