"""The colours of figures, of the player and of the notebooks: one palette, one colormap, stated here.

`show/player/web/player.css` repeats that of the waveform for a white page; a test holds the two equal. The
other colours there also serve as text, which needs more contrast.
"""

# Okabe and Ito, "Color Universal Design", 2008.
ORANGE = "#E69F00"
SKY = "#56B4E9"
GREEN = "#009E73"
YELLOW = "#F0E442"
BLUE = "#0072B2"
VERMILLION = "#D55E00"
PURPLE = "#CC79A7"
GREY = "#767676"  # contrast of 4.5 against white
PALETTE = (BLUE, ORANGE, GREEN, VERMILLION, PURPLE, SKY, YELLOW)  # in the order of use

COLORS = "viridis"  # colormap of mels, spectrograms and fields; what is not finite is VERMILLION
DIVERGING_COLORS = "PuOr_r"  # of differences: white at 0
