"""Both stages behind one from_pretrained: sampling, jobs of many pictures, folders that hold a whole pipeline."""
