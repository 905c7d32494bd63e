"""What finds codes and codewords: k-means, descents, permutations, scales, statistics of inputs."""
