"""What tests share: real processes, real images and the tools they need."""
