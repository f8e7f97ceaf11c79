"""Files and page: results, notation, view, sentences, figures, page."""
