//! Running a user's command with its signals and its exit code.
