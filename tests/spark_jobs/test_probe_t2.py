import time
def test_it(chain, new_settings):
    import sys
    c = sys.modules[type(chain).__module__]
    s = new_settings()
    chain.put(s, c.photo_set(24))
    for r in range(2):
        t=time.time(); chain.plan(s, f"r{r}"); print("plan", time.time()-t)
        for j in ("featurize","pca","validate"):
            t=time.time(); rc=chain.submit(j, s, f"r{r}"); print(j, rc, time.time()-t, chain.documents(s, f"r{r}")[j]["seconds"])
        t=time.time(); chain.publish(s, f"r{r}"); print("publish", time.time()-t)
        chain.put(s, c.photo_set(3,100))
    assert 0
