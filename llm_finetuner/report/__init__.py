"""A verdict and the histories of its runs, as a page, as Markdown and as numbers."""
