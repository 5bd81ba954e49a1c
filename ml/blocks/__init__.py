"""Building blocks of methods: losses, mixtures, schedules, selections. Several methods share each; none is a method."""
