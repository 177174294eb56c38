"""How good captions are: tokenisation, BLEU, ROUGE-L, CIDEr, METEOR, and the runs that measure them."""
