"""Operations without a weight to multiply by, one kind a file, and the functions that several are made of."""
