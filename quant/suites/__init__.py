"""What is measured: embedded models, manifests, published models; and the one loop that measures them."""
