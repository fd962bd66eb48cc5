"""The running cluster: states, planning, the manager that carries plans out, and the dispatcher."""
