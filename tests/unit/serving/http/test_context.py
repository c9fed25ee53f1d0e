def test_requests_that_run_are_counted(served):
    context = served.server.context
    assert context.running == 0
    seen = []
    find = type(context.service).find

    async def noticing(self, *args):
        seen.append(context.running)
        return await find(self, *args)

    type(context.service).find = noticing
    try:
        served.post("/v1/completions", {"model": "german", "prompt": "sky", "max_tokens": 1})
    finally:
        type(context.service).find = find
    assert seen == [1] and context.running == 0
