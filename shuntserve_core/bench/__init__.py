"""Load generation against any OpenAI endpoint.

* `arrivals`: when requests come, and how long they are
* `calls`: one request, and what is measured of it
* `load`: closed and open loop
* `report`: the CSV file and the summary
"""
