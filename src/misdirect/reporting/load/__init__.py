"""Files of a run or an audit, read once and checked."""
