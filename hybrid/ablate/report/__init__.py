"""Files and page: results, notation, view, sentences, heat_maps, figures, page."""
