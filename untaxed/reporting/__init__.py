"""A study's numbers for readers: on the terminal, as Markdown, as one HTML page."""

from .markdown import markdown as markdown
from .page import frontier_svg as frontier_svg
from .page import html as html
from .page import write_html as write_html
from .terminal import terminal as terminal
