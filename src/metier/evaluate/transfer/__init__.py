"""The reward-transfer audit: does what is optimised arrive in what is wanted?"""
