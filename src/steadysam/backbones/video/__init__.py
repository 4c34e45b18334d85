"""SAM 2 and its kin, which follow an object through slices as through the frames of a video; from `transformers`."""
