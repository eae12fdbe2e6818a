pytest_plugins = ["proxyhealth.pytest_plugin"]
