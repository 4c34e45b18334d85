"""What the methods on SAM 2 share: lanes of prompts, propagation through slices, tuning on clips."""
