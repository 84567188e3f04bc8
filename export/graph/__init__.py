"""What is wrapped around a network so that its graph takes what a camera gives and answers what a program wants."""
