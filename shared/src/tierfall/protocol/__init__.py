"""What crosses a process border: subjects, envelope, frames, beats, failures."""
