"""Pure statistics: intervals of one sample, paired comparisons of two."""
